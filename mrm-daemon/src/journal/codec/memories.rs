//! What another daemon remembered: in journals, and in the file of statistics.

use super::{Out, Read, Written, get_list, unknown};
use minicbor::Decoder;
use mrm_core::id::Bytes;
use mrm_core::policy::{Experience, LoadMemory, Memory, Route};

/// All but what is kept free on devices, which came later: whoever writes it down puts that elsewhere.
pub(crate) fn put_memory(out: &mut Out<'_>, memory: &Memory) -> Written {
    out.u64(memory.uses)?.u64(memory.idle_us)?;
    out.u8(memory.class)?.u64(memory.gaps.len() as u64)?;
    for (bucket, count) in &memory.gaps {
        out.u8(*bucket)?.u32(*count)?;
    }
    out.u64(memory.run_us)?.u64(memory.runs)?;
    out.u64(memory.loads.len() as u64)?;
    for load in &memory.loads {
        out.u8(route_number(load.route))?.u64(load.bytes)?;
        out.u64(load.us)?.u64(load.last.0)?;
    }
    out.u32(memory.tries_thousandths)?
        .u32(memory.hits_thousandths)?;
    Ok(())
}

pub(crate) fn put_experience(out: &mut Out<'_>, experience: &Experience) -> Written {
    out.u64(experience.gaps.len() as u64)?;
    for (class, bucket, count) in &experience.gaps {
        out.u8(*class)?.u8(*bucket)?.u64(*count)?;
    }
    Ok(())
}

/// What [`put_memory`] wrote.
pub(crate) fn get_memory(from: &mut Decoder<'_>) -> Read<Memory> {
    Ok(Memory {
        uses: from.u64()?,
        idle_us: from.u64()?,
        class: from.u8()?,
        gaps: get_list(from, |from| Ok((from.u8()?, from.u32()?)))?,
        run_us: from.u64()?,
        runs: from.u64()?,
        loads: get_list(from, |from| {
            Ok(LoadMemory {
                route: route_of(from.u8()?)?,
                bytes: from.u64()?,
                us: from.u64()?,
                last: Bytes(from.u64()?),
            })
        })?,
        tries_thousandths: from.u32()?,
        hits_thousandths: from.u32()?,
        reserve: Bytes::ZERO,
    })
}

pub(crate) fn get_experience(from: &mut Decoder<'_>) -> Read<Experience> {
    let gaps = get_list(from, |from| Ok((from.u8()?, from.u8()?, from.u64()?)))?;
    Ok(Experience { gaps })
}

const fn route_number(route: Route) -> u8 {
    match route {
        Route::ToHost => 0,
        Route::ToDevice => 1,
        Route::Up => 2,
        Route::Across => 3,
    }
}

fn route_of(number: u8) -> Read<Route> {
    match number {
        0 => Ok(Route::ToHost),
        1 => Ok(Route::ToDevice),
        2 => Ok(Route::Up),
        3 => Ok(Route::Across),
        number => Err(unknown("route", number.into())),
    }
}
